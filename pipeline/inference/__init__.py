"""A trained model in use: pictures in, embeddings and distances out."""

from pipeline.inference.api import Trained, distances, find_pictures, load
from pipeline.inference.embedding_file import NamedEmbedding
from pipeline.inference.embedding_file import read as read_embeddings

__all__ = ["NamedEmbedding", "Trained", "distances", "find_pictures", "load", "read_embeddings"]
