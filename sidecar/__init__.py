"""transfer-sidecar: moves game servers from node to node without losing, forking or corrupting them."""

__version__ = "0.2.0"
