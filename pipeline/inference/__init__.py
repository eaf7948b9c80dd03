"""A trained model in use: pictures in, embeddings and distances out."""

from pipeline.inference.api import Trained, distances, load

__all__ = ["Trained", "distances", "load"]
