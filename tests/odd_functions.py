"""A file of a user's with functions that do what no verifier should: its text, for tests to write and to run elsewhere."""

FUNCTIONS = '''
import os, signal, subprocess, sys, threading, time, json
from pathlib import Path
import beside
from dataclasses import dataclass

@dataclass
class Pair:
    left: str

class Odd(Exception):
    def __init__(self, a, b):
        self.lock = threading.Lock()
    def __str__(self):
        raise ValueError("no text either")

def same(row, answer):
    return answer == row["answer"] and Pair(answer).left == beside.NAME + answer

def hidden(): os._exit(0)

def does(row, answer):
    time.sleep(row.get("sleep", 0))
    match answer:
        case "half": return 0.5
        case "raise": print("before", "the fall"); print("more", file=sys.stderr); raise KeyError("boom\\nsecond")
        case "odd": raise Odd(1, 2)
        case "exit": sys.exit(0)
        case "exit 0": os._exit(0)
        case "exit 3": os._exit(3)
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "none": return None
        case "nan": return float("nan")
        case "two": return 2
        case "text": return "1.0"
        case "lambda": return lambda: 1
        case "timeout error": raise TimeoutError("mine")
        case "hang": time.sleep(10**6)
        case "stubborn":
            for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_IGN)
            while True:
                try: time.sleep(10**6)
                except BaseException: pass
        case "child hangs":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10**6)"])
            Path(row["pid"]).write_text(str(child.pid)); child.wait()
        case "regex": import re; re.match("(a+)+$", "a" * 60 + "b")
        case "print":
            print("x" * 10**7); sys.stderr.write("y" * 10**6); os.write(1, b"raw" * 10**5); os.write(2, b"raw")
            subprocess.run(["echo", "from a program"], check=True)
        case "fork": os.fork()
        case "fork and raise":
            if os.fork() == 0: raise ValueError("in the child")
        case "reap": os.waitpid(-1, 0)  # raises where there was no child, hangs where it lives
        case "cd": os.chdir("/")
        case "alarm": signal.setitimer(signal.ITIMER_REAL, 0.2)
        case "close": sys.stdout.close(); sys.stderr = None
        case "torch": return "torch" not in sys.modules and "vllm" not in sys.modules and "pydantic" not in sys.modules
        case "where": return os.getcwd() == row["cwd"]
        case "input": return sys.stdin is None or sys.stdin.read() == ""
        case "numpy": import numpy; return numpy.float32(0.5) if row.get("part") else numpy.bool_(True)
        case "mutate": row["answer"] = "changed"
        case "slow": time.sleep(0.5)
        case "pid": Path(row["pid"]).write_text(str(os.getpid())); time.sleep(10**6)
    return True
'''
