# Makes of ops.def a function guarded_NAME for every op but those that guarded.c writes itself: it opens the guarded memory, runs the
# op of the real device, and closes it again.
/^OP\(/ {
    line = $0
    name = substr(line, 4, index(line, ",") - 4)
    args = substr(line, index(line, ",") + 2)
    args = substr(args, 1, length(args) - 1) # with its parentheses
    if (name == "row_squares" || name == "fix_add") next
    n = split(substr(args, 2, length(args) - 2), arg, ",")
    call = ""
    for (i = 1; i <= n; i++) {
        k = split(arg[i], word, /[ *]/)
        call = call (i > 1 ? ", " : "") word[k]
    }
    printf "static void guarded_%s%s\n{\n    guard_open();\n    real.%s(%s);\n    guard_close();\n}\n", name, args, name, call
}
