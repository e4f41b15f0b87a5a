"""A GitHub on loopback for tests: REST, GraphQL by GitHub's own schema, and git over HTTP, from a real history."""
