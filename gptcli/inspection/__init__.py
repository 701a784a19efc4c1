"""What happens inside the model: captured by hooks on the one model, measured, drawn."""
