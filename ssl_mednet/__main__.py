"""``python -m ssl_mednet`` is ``ssl-mednet``."""

from ssl_mednet.cli import main

if __name__ == "__main__":
    main()
