"""Bytes <-> arrays and proofs: one reader and one writer of every format, shared by client and server. Never pickle.

canonical    one spelling for every value: RFC 8785 JSON, digests
proof        Merkle hashing of the audit log (RFC 6962), and its check
megabatch    labelled arrays packed for upload (npz), their digest, the ids of examples
webhook      signatures and events of webhooks
checkpoint   sparse checkpoints: mask bits, kept values, manifest (safetensors)
"""
