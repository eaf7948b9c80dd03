"""Rendered pedestrians: articulated, dressed people in drawn scenes, with the part of every pixel known.

people      identities: attributes, build          skeleton    joints in three dimensions, views
textures    cloth, patterns, folds             canvas      shapes laid over one another, with part labels
heads, limbs, trunks, garments, bags, bodies   a person painted from far to near
scenes, cameras                                what is behind, and how it is recorded
overlay, vehicles, occluders                   what is in front
figures     a person on an empty canvas        contamination  bystanders and parcels
pictures    one crop and its truth             dataset     the embedded dataset as an archive
"""

from pipeline.synthetic.people import ATTRIBUTES, Person, attribute_classes
from pipeline.synthetic.pictures import Picture, training_picture

__all__ = ["ATTRIBUTES", "Person", "Picture", "attribute_classes", "training_picture"]
