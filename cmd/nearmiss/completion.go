package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"Shell: ${enum}."`
}

func (*completionCmd) Help() string {
	return "It prints a script for the shell, which asks this program for what fits.\n\n" +
		examples(
			`bash:  echo 'source <(nearmiss completion bash)' >> ~/.bashrc`,
			`zsh:   nearmiss completion zsh > "${fpath[1]}/_nearmiss"`,
			`fish:  nearmiss completion fish > ~/.config/fish/completions/nearmiss.fish`,
		)
}

func (c *completionCmd) Run(o *output) error {
	_, err := io.WriteString(o.Out, map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.Shell])
	return err
}

// completeWord is what the scripts call, with the words so far but the program's
// name; the last one is being written. It is no command that people see.
const completeWord = "__complete"

// What complete prints in place of words: let the shell complete files or folders.
const (
	completeFiles   = ":files"
	completeFolders = ":folders"
)

const bashCompletion = `# bash completion for nearmiss
_nearmiss() {
	local word rest
	COMPREPLY=()
	while IFS=$'\t' read -r word rest; do
		case $word in
		:files) compopt -o default ;;
		:folders) compopt -o dirnames ;;
		?*) COMPREPLY+=("$word") ;;
		esac
	done < <("${COMP_WORDS[0]}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _nearmiss nearmiss
`

const zshCompletion = `#compdef nearmiss
# zsh completion for nearmiss
_nearmiss() {
	local -a found
	local line
	for line in "${(@f)$("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
		case $line in
		:files) _files && return ;;
		:folders) _files -/ && return ;;
		?*) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
		esac
	done
	_describe -t nearmiss nearmiss found
}
if [ "$funcstack[1]" = "_nearmiss" ]; then
	_nearmiss "$@"
else
	compdef _nearmiss nearmiss
fi
`

const fishCompletion = `# fish completion for nearmiss
function __nearmiss_complete
	set -l words (commandline -opc) (commandline -ct)
	for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
		switch $line
			case ':files'
				__fish_complete_path (commandline -ct)
			case ':folders'
				__fish_complete_directories (commandline -ct)
			case '*'
				echo $line
		end
	end
end
complete -c nearmiss -f -a '(__nearmiss_complete)'
`

// complete prints what may stand in place of the last word, one a line, with what
// it means after a tab.
func complete(w io.Writer, app *kong.Application, words []string) {
	// Shells that take = for the end of a word.
	words = slices.DeleteFunc(slices.Clone(words), func(s string) bool { return s == "=" })
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	at := app.Node
	var before *kong.Flag // whose value is next
	arguments := 0
	for _, word := range words[:len(words)-1] {
		if before != nil {
			before = nil
			continue
		}
		if strings.HasPrefix(word, "-") && word != "-" {
			name, _, given := strings.Cut(word, "=")
			if f := flagOf(at, name); f != nil && !given && !f.IsBool() && !f.IsCounter() {
				before = f
			}
			continue
		}
		if c := childOf(at, word); c != nil && arguments == 0 {
			at = c
		} else {
			arguments++
		}
	}
	offer := func(word, help string) {
		if strings.HasPrefix(word, last) {
			help, _, _ = strings.Cut(help, "\n")
			fmt.Fprintf(w, "%s\t%s\n", word, help)
		}
	}
	values := func(v *kong.Value, prefix string) {
		switch {
		case v.Enum != "":
			for _, e := range v.EnumSlice() {
				offer(prefix+e, v.Help)
			}
		case strings.HasSuffix(v.Tag.Type, "dir"):
			fmt.Fprintln(w, completeFolders)
		case strings.HasSuffix(v.Tag.Type, "file"), strings.HasSuffix(v.Tag.Type, "path"), v.Tag.Type == "backbone":
			fmt.Fprintln(w, completeFiles)
		}
	}
	name, _, given := strings.Cut(last, "=")
	switch {
	case before != nil:
		values(before.Value, "")
	case strings.HasPrefix(last, "-") && given:
		if f := flagOf(at, name); f != nil {
			values(f.Value, name+"=")
		}
	case strings.HasPrefix(last, "-"):
		for n := at; n != nil; n = n.Parent {
			for _, f := range n.Flags {
				if f.Hidden {
					continue
				}
				offer("--"+f.Name, f.Help)
				if f.Tag.Negatable != "" {
					offer("--no-"+f.Name, f.Help)
				}
			}
		}
	case len(at.Children) > 0 && arguments == 0:
		for _, c := range at.Children {
			if !c.Hidden {
				offer(c.Name, c.Help)
			}
		}
	case len(at.Positional) > 0:
		values(at.Positional[min(arguments, len(at.Positional)-1)], "")
	}
}

// flagOf finds a flag of a command or of those above it by how it is written.
func flagOf(at *kong.Node, name string) *kong.Flag {
	for n := at; n != nil; n = n.Parent {
		for _, f := range n.Flags {
			if name == "--"+f.Name || name == "--no-"+f.Name || f.Short != 0 && name == "-"+string(f.Short) ||
				slices.ContainsFunc(f.Aliases, func(a string) bool { return name == "--"+a }) {
				return f
			}
		}
	}
	return nil
}
