"""Text as a condition: frozen text encoders, and the tokens that they make of captions and prompts."""
