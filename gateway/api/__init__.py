"""The control API: what operators and key holders ask of control over HTTP (Django REST framework)."""
