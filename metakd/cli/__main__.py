"python -m metakd.cli"
from metakd.cli.shell import main

if __name__ == "__main__":
    main()
