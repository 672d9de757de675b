"""Where a run's data comes from (`data=`), and who holds which of it (`partition=`)."""

# {name: the source's class}. It is imported when it is asked for: scikit-learn and torchvision take seconds to import,
# and a run has one source.
SOURCES: dict[str, str] = {
    "cifar10": "fedinit.data.torchvision_sets:Cifar10",
    "cifar100": "fedinit.data.torchvision_sets:Cifar100",
    "csv": "fedinit.data.image_list:ImageList",
    "digits": "fedinit.data.digits:Digits",
    "hub": "fedinit.data.hub:Hub",
    "image_folder": "fedinit.data.image_folder:ImageFolder",
    "matrix_sensing": "fedinit.data.matrix_sensing:MatrixSensing",
    "torchvision": "fedinit.data.published_sets:TorchvisionSet",
}
