"""The findings of a certificate, a file for each kind of question."""
