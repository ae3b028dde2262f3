"""Words: what the page says of each stream.

Knows: titles and protocols, as ``streams`` has them. Must never know: figures.
"""

from __future__ import annotations

TITLES = {
    "digits": "Digits",
    "gas": "Gas sensors (drift)",
    "tabular": "Tabular, no drift",
    "fashion": "Fashion-MNIST",
    "digits-24": "Digits, 24 megabatches",
    "digits-120": "Digits, 120 megabatches",
    "fashion-24": "Fashion-MNIST, 24 megabatches of 100",
    "fashion-120": "Fashion-MNIST, 120 megabatches of 100",
    "fashion-resnet18": "Fashion-MNIST, ResNet-18",
    "fashion-resnet50": "Fashion-MNIST, ResNet-50",
    "fashion-vgg16": "Fashion-MNIST, VGG-16",
}

_AS_CIFAR = "The images of Fashion-MNIST, padded to 32 x 32 in three channels; the network in CIFAR form; 10 epochs."

ABOUT = {
    "digits": (
        "scikit-learn's 8 x 8 digits: 1,296 examples in 8 megabatches of 162, 500 for testing, drawn anew for each "
        "seed; MLP 64-128-128-10; 25 epochs a megabatch."
    ),
    "gas": (
        "UCI Gas Sensor Array Drift: 16 chemical sensors over 36 months, natural batches 1-6, 8 and 9 in order; train "
        "on all batches up to t, test on the next one (prequential: anytime accuracy is the prequential mean, final "
        "accuracy that of the last batch); MLP 128-128-64-6; 12 epochs. Seeds differ in initial weights and order."
    ),
    "tabular": (
        "16 whitened principal components of Fashion-MNIST, the axes taken from images that are not in the stream: "
        "4,800 examples in 8 megabatches, 8,000 for testing; MLP 16-200-200-10; 10 epochs."
    ),
    "fashion": (
        "12,000 images in 8 megabatches, tested on the first 5,000 official test images; CNN of 16, 32 and 64 "
        "channels; 2 epochs, which leaves large networks under-trained on the first megabatches."
    ),
    "digits-24": "The same examples in 24 megabatches of 54: about five examples a class in each.",
    "digits-120": (
        "1,200 of the same examples in 120 megabatches of 10: one example a class, and not of every class. The paper's "
        "rows score on a fifth of a megabatch: two examples here. Most scores are then exactly zero, ties go to the "
        "earlier layer, and the last layer is lost: what becomes of them tells of the sample, not of the schedule."
    ),
    "fashion-24": "2,400 images in 24 megabatches of 100: ten examples a class in each; MLP 784-128-128-10; 10 epochs.",
    "fashion-120": "12,000 images in 120 megabatches of 100; MLP 784-128-128-10; 10 epochs.",
    "fashion-resnet18": _AS_CIFAR,
    "fashion-resnet50": _AS_CIFAR,
    "fashion-vgg16": _AS_CIFAR,
}
