"""Pull requests of GitHub: what people said by its API, the code by git where that can be had."""
