"""`isotrain gpu-check`: whether a GPU computes right and how fast it is, in stages that each leave their result."""
