"""Rows to domain objects: what older versions of the service wrote is read, too."""

from app.domain import InputSpec
from app.store.rows import input_document, input_of


def test_an_input_of_before_columns_is_read() -> None:
    spec = InputSpec(shape=(3,), dtype="float32", classes=("a", "b"))
    document = input_document(spec)
    for later in ("unseen_classes", "label", "features", "resize"):
        del document[later]
    assert input_of(document) == spec
