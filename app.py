"""Try finished runs in the browser: python app.py [--runs runs], or python app.py RUN [RUN ...]. The same as `rlhf chat`."""

import sys

from rlhf.commands.chat import main

if __name__ == "__main__":
    sys.exit(main())
