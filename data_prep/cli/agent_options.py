"""Options of the commands in which a model works on tasks."""

from typing import Annotated

import typer

Server = Annotated[str, typer.Option(help="Address of a server with OpenAI's protocol: http://HOST/v1.")]
ModelName = Annotated[str, typer.Option(help="The model's name in it. OPENAI_API_KEY is the server's key.")]
Profile = Annotated[str, typer.Option(help="davinci-dev or openswe: what the next four are by default.")]
Steps = Annotated[int | None, typer.Option(help="Most replies of a rollout; 100, openswe 300.")]
MaxTokens = Annotated[
    int | None, typer.Option(help="Longest context, as the server counts tokens; 131,072, openswe 200,000.")
]
ReplyTokens = Annotated[int, typer.Option(help="Longest reply, in tokens.")]
RequestFields = Annotated[
    list[str] | None, typer.Option(help="name=JSON, one more field of every request: top_p=0.95.")
]
Seconds = Annotated[float, typer.Option(help="Most seconds of a rollout, its waiting for replies included.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for a server that does not answer.")]
ReplySeconds = Annotated[float, typer.Option(help="Most seconds of a reply.")]
