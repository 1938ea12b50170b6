"""The same work with other libraries, each in an environment of its own, run alternately with ours on one machine."""
