"""The pruning methods of a run: one method a file, found by the name of its file."""

from .method import Method as Method
from .method import MethodContext as MethodContext
from .method import Problem as Problem
from .registry import by_name as by_name
from .registry import find as find
from .registry import option_names as option_names
from .registry import owners as owners
