"""What goes over HTTP between the control service and its clients."""
