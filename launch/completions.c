// completions: `source <(attune completions bash)`. Generated from the tables, so that it never lags behind them.
#include "cli.h"
#include <string.h>

static void print_options(FILE *out, const Verb *v)
{
    fprintf(out, "    %s) options=\"--help", v->name);
    for (const CliOption *o = v->options; o && o->name; o++) fprintf(out, " --%s", o->name);
    fprintf(out, "\"");
    if (strncmp(v->args, "RECIPE", 6) == 0) fprintf(out, "; keys=$recipe_keys");
    fprintf(out, " ;;\n");
}

// Options that take one of a few words: --precision bf16|f32
static void print_choices(FILE *out)
{
    for (int i = 0; i < n_verbs; i++) {
        for (const CliOption *o = verbs[i].options; o && o->name; o++) {
            if (!o->arg || !strchr(o->arg, '|')) continue;
            fprintf(out, "    %s:--%s) COMPREPLY=($(compgen -W \"", verbs[i].name, o->name);
            for (const char *c = o->arg; *c; c++) fputc(*c == '|' ? ' ' : *c, out);
            fprintf(out, "\" -- \"$cur\")); return ;;\n");
        }
    }
}

void completions_print_bash(FILE *out)
{
    fputs("# bash completion for attune; made by `attune completions bash`\n"
          "_attune() {\n"
          "    local cur=$2 prev=$3 verb=${COMP_WORDS[1]} options= keys=\n"
          "    local recipe_keys='\n",
          out);
    run_recipe_keys(out);
    fputs("'\n"
          "    if [ \"$COMP_CWORD\" = 1 ]; then\n"
          "        COMPREPLY=($(compgen -W \"",
          out);
    for (int i = 0; i < n_verbs; i++)
        if (!verbs[i].hidden) fprintf(out, "%s%s", i ? " " : "", verbs[i].name);
    fputs("\" -- \"$cur\")); return\n"
          "    fi\n"
          "    case $verb:$prev in\n",
          out);
    print_choices(out);
    fputs("    esac\n"
          "    case $verb in\n",
          out);
    for (int i = 0; i < n_verbs; i++)
        if (!verbs[i].hidden) print_options(out, &verbs[i]);
    fputs("    esac\n"
          "    case $cur in\n"
          "    -*) COMPREPLY=($(compgen -W \"$options\" -- \"$cur\")) ;;\n"
          "    *) COMPREPLY=($(compgen -f -- \"$cur\"))\n"
          "       if [ -n \"$keys\" ] && [ \"$COMP_CWORD\" -gt 2 ]; then\n"
          "           COMPREPLY+=($(compgen -S = -W \"$keys\" -- \"$cur\"))\n"
          "           compopt -o nospace\n"
          "       fi ;;\n"
          "    esac\n"
          "}\n"
          "complete -o filenames -F _attune attune\n",
          out);
}
