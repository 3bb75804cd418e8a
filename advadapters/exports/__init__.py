"""Networks as files for other programs; `reading` needs jax, numpy and flatbuffers only."""
