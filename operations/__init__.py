"""What is run beside `pulumi up`, with any stack: it tells, and it mends what is named."""
