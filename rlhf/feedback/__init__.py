"""What people said about answers: events, the store they are kept in, numbers about them, and training rows."""
