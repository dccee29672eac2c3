"""A small HTTP service that draws images from one model. The command `serve` starts it; nothing else imports it."""
