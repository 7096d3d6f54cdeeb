"""The tabs of the demo, a module each; racing has what they share."""
