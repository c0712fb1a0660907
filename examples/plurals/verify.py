"""The verifier of examples/plurals."""


def verify(row: dict, answer: str) -> bool:
    """Whether it is a plural that the row has, whatever its case and a full stop behind it."""
    accepted = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    return answer.strip(" .\"'").lower() in accepted
