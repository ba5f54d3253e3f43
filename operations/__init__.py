"""What is run beside `pulumi up`, with any stack: it reads, and changes nothing."""
