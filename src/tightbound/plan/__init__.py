"""What `fit` chooses when you choose nothing, and how it climbs until the certificate passes."""
