"""People who sign in: their roles, second factors, sign-in by an identity provider, and what team leads may do."""
