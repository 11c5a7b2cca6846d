"""Networks: ImageNet and CIFAR residual networks, and the registry that names them."""
