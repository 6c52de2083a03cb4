"""What a file is and what is in it: containers, key names, recognition, identity.  Never imports `graph`."""
