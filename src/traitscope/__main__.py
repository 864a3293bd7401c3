from traitscope.cli import main

main()
