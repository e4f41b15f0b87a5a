"""`davinci demo`: the whole way on this machine."""
