"""EVOS as a nerfstudio plugin: methods such as ``evos-nerfacto`` choose training rays by the model's errors."""
