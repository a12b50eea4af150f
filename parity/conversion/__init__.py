"""state_dict <-> NNX: the structural map, the rules for each kind of layer, and the files."""
