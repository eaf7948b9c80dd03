"""A trained model in use: pictures in, embeddings and distances out."""

from pipeline.inference.api import Trained, distances, find_pictures, load

__all__ = ["Trained", "distances", "find_pictures", "load"]
