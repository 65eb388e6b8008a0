"""EVOS as a nerfstudio plugin: ``ns-train evos-nerfacto`` and its like choose their rays by the errors they make."""
