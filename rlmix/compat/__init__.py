"""The mixing transforms of other libraries under their own names, on rlmix plans; none of these libraries is needed."""
