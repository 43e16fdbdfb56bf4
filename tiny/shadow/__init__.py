"""The small network that knows how an object darkens the ground: training and measures."""
