"""What is asked of the state, the server and the builders around a deployment."""
