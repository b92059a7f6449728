"""Turns a CUDA source into C++ for the emulated GPU (device_language.h):

    kernel<kFlag><<<grid, block, bytes, stream>>>(a, b);
    emulation::launch(grid, block, bytes, stream, [=](auto... x) { kernel<kFlag>(x...); }, a, b);

    extern __shared__ float rows[];
    auto* rows = reinterpret_cast<float*>(emulation::dynamic_shared_memory());

usage: convert.py INPUT OUTPUT
"""

import re
import sys


def begin_of_kernel(text, end):
    """Where the name (with template arguments) that ends at `end` begins."""
    begin, depth = end, 0
    while depth > 0 or text[begin - 1] == ">" or text[begin - 1].isalnum() or text[begin - 1] in "_:":
        begin -= 1
        depth += {">": 1, "<": -1}.get(text[begin], 0)
    return begin


def end_of_parentheses(text, begin):
    depth = 0
    for i in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError("a launch without an end")


def convert(text):
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?([\w ]+?) (\w+)\[\];",
        r"auto* \2 = reinterpret_cast<\1*>(emulation::dynamic_shared_memory());",
        text,
    )
    text = re.sub(r"\s+<<<", "<<<", text)
    result, done = "", 0
    while (launch := text.find("<<<", done)) >= 0:
        begin = begin_of_kernel(text, launch)
        arguments = text.index(">>>", launch) + 3
        end = end_of_parentheses(text, arguments)
        result += (
            f"{text[done:begin]}emulation::launch({text[launch + 3:arguments - 3]}, "
            f"[=](auto... x) {{ {text[begin:launch]}(x...); }}, {text[arguments + 1:end]})"
        )
        done = end + 1
    return result + text[done:]


if __name__ == "__main__":
    with open(sys.argv[1]) as source, open(sys.argv[2], "w") as target:
        target.write(convert(source.read()))
