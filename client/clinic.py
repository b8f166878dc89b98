"""gliofed-clinic: the clinic's commands and, above them, the review page's."""

from client.inference.cli import app, main
from client.review.cli import review

app.command()(review)

__all__ = ["main"]

if __name__ == "__main__":
    main()
