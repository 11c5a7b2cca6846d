"""Networks: residual networks for ImageNet and CIFAR, the registry that names them, and `load_network` for finished ones."""

from models.finished import load_network
from models.outputs import Outputs, outputs_of, set_training
from models.registry import ModelSpec, build_model

__all__ = ["ModelSpec", "Outputs", "build_model", "load_network", "outputs_of", "set_training"]
