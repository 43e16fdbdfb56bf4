"""The small networks: how they are trained, evaluated and put into `assets/tiny`."""
