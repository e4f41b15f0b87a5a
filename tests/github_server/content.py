"""What the server knows: the pull requests of a clone, with conversations made of GitHub's published payloads."""

import json
import subprocess
from pathlib import Path
from typing import Any

from data_prep.sources.git import GitSource

Node = dict[str, Any]
TALKATIVE, GHOSTLY, FORCE_PUSHED, GONE = 0, 1, 2, 3  # of the pull requests, by place: what is odd about each


def payload(folder: Path, name: str) -> Any:
    return json.loads((folder / "octokit_webhooks" / name).read_text())


class Content:
    """`nodes` are pull requests as GraphQL knows them, oldest first; `clone` is what git serves."""

    def __init__(self, clone: Path, folder: Path, count: int) -> None:
        self.clone = clone
        self.name = "pytest-dev/pluggy"
        examples = json.loads((folder / "github_rest_openapi_examples_pulls_issues_commits.json").read_text())[
            "examples"
        ]
        self.commit_example = examples["GET /repos/{owner}/{repo}/pulls/{pull_number}/commits"]["default"]["value"][0]
        self.repository_payload = payload(folder, "issue_comment/created.payload.json")["repository"]
        source = GitSource(clone)
        planned = [plan for plan in source.pull_requests() if plan.head or plan.kind == "squash"][-count:]
        self.plans = {plan.number: plan for plan in planned}
        self.parents = source.graph.parents
        self.nodes = [self._node(plan, folder) for plan in planned]
        source.git.close()
        self._make_odd()

    def _node(self, plan: Any, folder: Path) -> Node:
        comment = payload(folder, "issue_comment/created.payload.json")["comment"]
        review = payload(folder, "pull_request_review/submitted.payload.json")["review"]
        inline = payload(folder, "pull_request_review_comment/created.payload.json")["comment"]
        issue = payload(folder, "issues/opened.payload.json")["issue"]
        number = plan.number
        return {
            "__typename": "PullRequest",
            "number": number,
            "title": plan.title,
            "body": plan.body,
            "author": user("contributor"),
            "createdAt": f"2020-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}Z",
            "mergedAt": "2026-01-02T00:00:00Z",
            "merged": True,
            "baseRefOid": self.parents[plan.landed][0],
            "headRefOid": plan.head or plan.landed,
            "mergeCommit": {"oid": plan.landed},
            "labels": [{"name": label["name"]} for label in issue["labels"]],
            "closingIssuesReferences": [issue_node(issue, number)],
            "comments": [comment_node(comment, 10 * number)],
            "reviews": [review_node(review, 10 * number + 1)],
            "reviewThreads": [thread_node(inline, 10 * number + 2, 10 * number + 1, 2)],
        }

    def _make_odd(self) -> None:
        comments = self.nodes[TALKATIVE]["comments"]
        comments += [{**comments[0], "fullDatabaseId": str(900_000 + n), "body": f"comment {n}"} for n in range(120)]
        thread = self.nodes[TALKATIVE]["reviewThreads"][0]
        first = thread["comments"][0]
        thread["comments"] += [{**first, "fullDatabaseId": str(800_000 + n), "body": f"answer {n}"} for n in range(45)]
        more = {**thread, "comments": thread["comments"][:1]}
        self.nodes[TALKATIVE]["reviewThreads"] += [{**more, "id": f"thread-more-{n}"} for n in range(40)]
        ghostly = self.nodes[GHOSTLY]
        ghostly["author"] = None
        ghostly["comments"][0]["author"] = None
        ghostly["reviews"][0]["author"] = None
        ghostly["closingIssuesReferences"][0]["author"] = None
        ghostly["body"] = ""
        ghostly["reviews"][0]["submittedAt"] = None
        self.nodes[FORCE_PUSHED]["headRefOid"] = "0" * 40  # what stands there now was never merged
        self.nodes[GONE]["mergeCommit"] = None

    def git(self, *arguments: str) -> bytes:
        return subprocess.run(["git", "-C", self.clone, *arguments], check=True, capture_output=True).stdout


def user(login: str) -> Node:
    return {"__typename": "User", "login": login}


def issue_node(issue: Node, number: int) -> Node:
    return {
        "number": 100_000 + number,
        "title": issue["title"],
        "body": f"{issue['body']} #{number}",
        "author": user(issue["user"]["login"]),
        "repository": {"nameWithOwner": "pytest-dev/pluggy"},
    }


def comment_node(comment: Node, number: int) -> Node:
    return {
        "fullDatabaseId": str(number),
        "createdAt": comment["created_at"],
        "body": comment["body"],
        "author": user(comment["user"]["login"]),
    }


def review_node(review: Node, number: int) -> Node:
    return {
        "fullDatabaseId": str(number),
        "state": review["state"].upper(),
        "submittedAt": review["submitted_at"],
        "createdAt": review["submitted_at"],
        "body": review["body"] or "",
        "author": user(review["user"]["login"]),
    }


def thread_node(inline: Node, number: int, review: int, count: int) -> Node:
    nodes = [
        {
            "fullDatabaseId": str(number + 1_000_000 * n),
            "createdAt": inline["created_at"],
            "body": inline["body"],
            "author": user(inline["user"]["login"]),
            "path": inline["path"],
            "line": inline.get("line"),
            "originalLine": inline.get("original_line", 1),
            "diffHunk": inline["diff_hunk"],
            "replyTo": {"fullDatabaseId": str(number)} if n else None,
            "pullRequestReview": {"fullDatabaseId": str(review)},
        }
        for n in range(count)
    ]
    return {"__typename": "PullRequestReviewThread", "id": f"thread-{number}", "comments": nodes}
