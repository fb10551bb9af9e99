"""Human feedback on answers: events, the store they are kept in, numbers about them, and training rows."""
