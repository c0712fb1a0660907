"""Is it the plural that the row has? Case and a full stop do not matter."""


def verify(row, answer):
    accepted = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    return answer.strip(" .\"'").lower() in accepted
