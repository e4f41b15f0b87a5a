"""What is asked of GitHub's GraphQL API, checked against its published schema by a test.

One query brings a page of pull requests with the beginnings of all their lists; where a list goes on, a query of its
own brings the rest. Nodes per query stay far below GitHub's limit of 500,000.
"""

PULL_REQUESTS_PER_QUERY = 25
_FIRST = {"labels": 20, "issues": 10, "comments": 50, "reviews": 50, "threads": 30, "thread_comments": 20}
REST_PER_QUERY = 100

_ACTOR = "author { login __typename }"
_PAGE = "pageInfo { hasNextPage endCursor }"
_ISSUE = f"number title body {_ACTOR} repository {{ nameWithOwner }}"
_COMMENT = f"fullDatabaseId createdAt body {_ACTOR}"
_REVIEW = f"fullDatabaseId state submittedAt createdAt body {_ACTOR}"
_REVIEW_COMMENT = (
    f"fullDatabaseId createdAt body {_ACTOR} path line originalLine diffHunk "
    "replyTo { fullDatabaseId } pullRequestReview { fullDatabaseId }"
)
_THREAD = f"id comments(first: {_FIRST['thread_comments']}) {{ {_PAGE} nodes {{ {_REVIEW_COMMENT} }} }}"

MERGED_PULL_REQUESTS = f"""
query($owner: String!, $name: String!, $first: Int!, $after: String) {{
  repository(owner: $owner, name: $name) {{
    pullRequests(first: $first, after: $after, states: MERGED, orderBy: {{field: CREATED_AT, direction: ASC}}) {{
      totalCount {_PAGE}
      nodes {{
        number title body {_ACTOR} createdAt mergedAt merged baseRefOid headRefOid mergeCommit {{ oid }}
        labels(first: {_FIRST["labels"]}) {{ {_PAGE} nodes {{ name }} }}
        closingIssuesReferences(first: {_FIRST["issues"]}) {{ {_PAGE} nodes {{ {_ISSUE} }} }}
        comments(first: {_FIRST["comments"]}) {{ {_PAGE} nodes {{ {_COMMENT} }} }}
        reviews(first: {_FIRST["reviews"]}) {{ {_PAGE} nodes {{ {_REVIEW} }} }}
        reviewThreads(first: {_FIRST["threads"]}) {{ {_PAGE} nodes {{ {_THREAD} }} }}
      }}
    }}
  }}
}}"""


def _rest_of(connection: str, nodes: str) -> str:
    return f"""
query($owner: String!, $name: String!, $number: Int!, $first: Int!, $after: String) {{
  repository(owner: $owner, name: $name) {{
    pullRequest(number: $number) {{
      {connection}(first: $first, after: $after) {{ {_PAGE} nodes {{ {nodes} }} }}
    }}
  }}
}}"""


REST_OF = {
    "labels": _rest_of("labels", "name"),
    "closingIssuesReferences": _rest_of("closingIssuesReferences", _ISSUE),
    "comments": _rest_of("comments", _COMMENT),
    "reviews": _rest_of("reviews", _REVIEW),
    "reviewThreads": _rest_of("reviewThreads", _THREAD),
}

REST_OF_THREAD = f"""
query($id: ID!, $first: Int!, $after: String) {{
  node(id: $id) {{
    ... on PullRequestReviewThread {{
      comments(first: $first, after: $after) {{ {_PAGE} nodes {{ {_REVIEW_COMMENT} }} }}
    }}
  }}
}}"""
