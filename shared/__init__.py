"""What both services and the client share."""
